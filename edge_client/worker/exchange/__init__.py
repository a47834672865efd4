# SPDX-License-Identifier: Apache-2.0
"""Models in the form that llama.cpp has them: GGUF files, read and written."""
