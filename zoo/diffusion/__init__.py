"""Diffusion: images from noise, and from a text.

    noise_schedule.py      how much of an image is left after each of T steps
    gaussian_diffusion.py  the forward process, which adds noise, and what its inverse has to know
    sampler.py             the reverse process: DDPM's steps and DDIM's, from noise to an image
    losses.py              the loss of a training step, and the average of the weights
    latents.py             the latent space of an autoencoder
    prompts.py             words, their ids, and what may be asked for
    pipeline.py            a trained model with all it needs to draw
    metrics.py             how good drawn images are
    plots.py               grids and animations
    config.py              what the two recipes share

The networks are `unet`, `autoencoder`, `text_encoder` and `text_to_image` in `zoo/models/`.

Source: the document's section "Modèles de Diffusion".
"""
