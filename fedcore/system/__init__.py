# SPDX-License-Identifier: Apache-2.0
"""What the operating system gives: files that survive a power cut, child processes, the log."""
