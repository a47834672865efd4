# SPDX-License-Identifier: Apache-2.0
"""Devices: what a machine is and what its sensors say. A fact that cannot be read is None, never a guess."""
