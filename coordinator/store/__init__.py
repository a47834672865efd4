# SPDX-License-Identifier: Apache-2.0
"""What of a run lies on the disk: ledger, folder, events, and the view for other processes."""
