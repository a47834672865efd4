# SPDX-License-Identifier: Apache-2.0
"""Adapters of the package `peft` on a built model: on its layers (`layers`), or as virtual tokens (`tokens`)."""
