# SPDX-License-Identifier: Apache-2.0
"""Answers of a causal language model, token by token."""
