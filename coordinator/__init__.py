# SPDX-License-Identifier: Apache-2.0
"""The coordinator: announces rounds, aggregates accumulators exactly, republishes state and seeds. No torch here."""
