"""Diffusion models: training, sampling, and metrics of the samples.

    noise_schedule.py      noise schedules: the share of the image after each of T steps
    gaussian_diffusion.py  the forward process, which adds noise, and the network's target
    losses.py              the trainer of diffusion models and the average of their weights
    sampler.py             the reverse process, from noise to images: DDPM and DDIM
    latents.py             standardised latents of an autoencoder
    prompts.py             prompt templates and the tokenizer of prompts
    pipeline.py            a trained model with all that sampling needs
    metrics.py             sample metrics computed with a classifier
    plots.py               image grids and animations
    config.py              configuration of the recipes
    auxiliary.py           the classifier and the autoencoder that a recipe trains as well
    report.py              samples, metrics and plots of a run

The networks are `unet`, `autoencoder`, `text_encoder` and `text_to_image` in `zoo/models/`.

Source: the document's section "Modèles de Diffusion".
"""
