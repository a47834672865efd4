# SPDX-License-Identifier: Apache-2.0
"""Kinds of devices, one file each."""
