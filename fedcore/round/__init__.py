# SPDX-License-Identifier: Apache-2.0
"""What a round says: its plan, how a participant trains, and what an update must have."""
