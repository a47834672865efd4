# SPDX-License-Identifier: Apache-2.0
"""What runs as a process of its own."""
