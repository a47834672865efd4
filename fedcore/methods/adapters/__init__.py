# SPDX-License-Identifier: Apache-2.0
"""Server halves of the methods whose small tensors stand beside frozen layers, each averaged by itself."""
