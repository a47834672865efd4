# SPDX-License-Identifier: Apache-2.0
"""The main job: four homes fine-tune one model on what people say to their voice assistant."""
