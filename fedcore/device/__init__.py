# SPDX-License-Identifier: Apache-2.0
"""A device's numbers: what its sensors say, and where training memory goes."""
