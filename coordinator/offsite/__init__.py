# SPDX-License-Identifier: Apache-2.0
"""Offsite tuning at the owner's: an emulator of a full model for nodes, and what they learned put back into it."""
