# SPDX-License-Identifier: Apache-2.0
"""FedKRSO's client half: the round, what of Adam goes on between intervals, and the file of its rows."""
