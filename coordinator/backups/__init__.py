# SPDX-License-Identifier: Apache-2.0
"""A run as one file, made while it goes on, and a run made of such a file."""
