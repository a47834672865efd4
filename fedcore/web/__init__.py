# SPDX-License-Identifier: Apache-2.0
"""What all of ours needs that answers HTTP: where it listens, the names it answers to, and the tokens it takes."""
