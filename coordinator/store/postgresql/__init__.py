# SPDX-License-Identifier: Apache-2.0
"""Ledgers in PostgreSQL. Needs psycopg 3 (`fedkrso[postgres]`), and is imported only where a run has such a ledger."""
