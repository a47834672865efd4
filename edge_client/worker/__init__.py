# SPDX-License-Identifier: Apache-2.0
"""The worker process: the only place with torch. The agent starts it, feeds it a round and reads back accumulators."""
