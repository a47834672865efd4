# SPDX-License-Identifier: Apache-2.0
"""What a model folder says of itself: its configuration as a task needs it, and which of its tensors are what."""
