# SPDX-License-Identifier: Apache-2.0
"""`fedkrso doctor`: is this machine ready, and if not, what to do. Every check does the real thing; none raises, and
each has a limit."""
