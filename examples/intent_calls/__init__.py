# SPDX-License-Identifier: Apache-2.0
"""Four homes teach a language model to turn a spoken command into an intent call: `make demo-llm`."""
