# SPDX-License-Identifier: Apache-2.0
"""A worker process, seen from whoever started it: its messages, and the process."""
