# SPDX-License-Identifier: Apache-2.0
"""Short runs of a job in one process, and a search among them for learning rates and for a start of the head."""
