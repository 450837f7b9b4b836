"""One file, one kind of data: the networks of models that learn several kinds.

Each model names the functions that it needs (`BACKBONE`), and learns every kind whose file defines all of them:

to_unit, from_unit            between stored values and what networks see: values about -1 to 1, pictures of sound
PREPROCESSING                 optional: what to_unit does, for the protocol, where it is not what the network says
BINARY                        whether a grey level may be read as the chance of white
PICTORIAL                     whether flips, augmentations and convolutions at full resolution make sense
make_generator                layers from a latent vector to values
make_discriminator            layers from values to features, and how many features there are
make_features, shift          a classifier's layers likewise; random shifts of stored values, an augmentation
to_continuous, from_continuous    between stored values and those that have a density
CELL, find_shape              the width of a stored value among those (0: they have no bits), and an example's shape
make_velocity                 the network of a flow, by the name of an architecture
"""
