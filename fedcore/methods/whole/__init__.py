# SPDX-License-Identifier: Apache-2.0
"""Server halves of the methods that train weights themselves, in full."""
