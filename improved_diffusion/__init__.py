"""Denoising diffusion models that train, sample and evaluate on one CPU.

A port of OpenAI's improved-diffusion (Nichol & Dhariwal 2021, arXiv 2102.09672). Importing the
package itself loads nothing heavy; each module imports what it needs.
"""

__version__ = "1.0.0"
