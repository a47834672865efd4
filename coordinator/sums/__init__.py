# SPDX-License-Identifier: Apache-2.0
"""A round's sum by several processes: pieces of it handed out through the ledger's database, and taken by workers."""
