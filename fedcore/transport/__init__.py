# SPDX-License-Identifier: Apache-2.0
"""Transports: one interface (`base`), one file each."""
