# SPDX-License-Identifier: Apache-2.0
"""Answers of a small model with a large one behind it: who answers what, as pure functions of explicit state."""
