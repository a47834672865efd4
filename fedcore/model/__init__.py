# SPDX-License-Identifier: Apache-2.0
"""What is learned: the exact state, its merge into the base, updates that enter it, the digest."""
