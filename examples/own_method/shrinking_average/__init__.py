# SPDX-License-Identifier: Apache-2.0
"""A method of one's own: federated averaging that trusts each round less than the one before."""
