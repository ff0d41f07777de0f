from pathlib import Path

import h5py

from lartpc_ds.data import schema


def test_types_are_those_of_a_larcv3_file(real_events: Path):
    tables = {
        "Events/event_id": schema.EVENT_ID,
        "Data/sparse2d_sbndwire_group/extents": schema.EXTENTS,
        "Data/sparse2d_sbndwire_group/image_meta": schema.IMAGE_META,
        "Data/sparse2d_sbndwire_group/voxel_extents": schema.ID_EXTENTS,
        "Data/sparse2d_sbndwire_group/voxels": schema.VOXEL,
        "Data/particle_sbndneutrino_group/extents": schema.EXTENTS,
        "Data/particle_sbndneutrino_group/particles": schema.PARTICLE,
    }
    with h5py.File(real_events / "sbnd_2events_larcv3.h5") as file:
        for name, dtype in tables.items():
            assert file[name].dtype == dtype, name
            assert file[name].dtype.itemsize == dtype.itemsize, name
