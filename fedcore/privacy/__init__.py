# SPDX-License-Identifier: Apache-2.0
"""Differential privacy: exact noise in integers, and what it is worth."""
