# SPDX-License-Identifier: Apache-2.0
"""Devices: what a machine is. A fact that cannot be read is None, never a guess."""
