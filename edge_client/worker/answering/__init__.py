# SPDX-License-Identifier: Apache-2.0
"""A worker that answers for a server: the node's replica read beside its training, structured answers, labels."""
