# SPDX-License-Identifier: Apache-2.0
"""Rounds whose outcome comes from work of the coordinator rather than from a sum."""
