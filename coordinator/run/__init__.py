# SPDX-License-Identifier: Apache-2.0
"""A run at work: the loop, what it learns, what it publishes, and how it is led."""
