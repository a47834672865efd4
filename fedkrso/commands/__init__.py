# SPDX-License-Identifier: Apache-2.0
"""Commands that need both sides: a start of one's own, and a fleet on one machine."""
