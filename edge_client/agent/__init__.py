# SPDX-License-Identifier: Apache-2.0
"""The light process: the session, its messages and transfers, and what it keeps on disk."""
