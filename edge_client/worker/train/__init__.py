# SPDX-License-Identifier: Apache-2.0
"""A participant's round: the replica, its intervals, the trainer that fits the memory plan."""
