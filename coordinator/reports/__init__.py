# SPDX-License-Identifier: Apache-2.0
"""Runs looked at afterwards: summaries, comparisons, tables, exported models."""
