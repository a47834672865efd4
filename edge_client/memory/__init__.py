# SPDX-License-Identifier: Apache-2.0
"""Memory: what is used, what is allowed. Readings that cannot be had are None, never a number."""
