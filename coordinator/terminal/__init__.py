# SPDX-License-Identifier: Apache-2.0
"""Runs in a terminal: tables, pictures of numbers, pages that follow a run."""
