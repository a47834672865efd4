# SPDX-License-Identifier: Apache-2.0
"""Job and node files: reading them, the sections that both sides have, and what those name: broker and model folder."""
