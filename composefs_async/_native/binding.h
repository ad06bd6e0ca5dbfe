/* What binding.c puts into the module and other files define. */

#ifndef COMPOSEFS_BINDING_H
#define COMPOSEFS_BINDING_H

#include <Python.h>

PyObject *core_sort_ids(PyObject *module, PyObject *args);
PyObject *core_compare_shard(PyObject *module, PyObject *args);
PyObject *core_remove_objects(PyObject *module, PyObject *args);
PyObject *core_object_sizes(PyObject *module, PyObject *args);
PyObject *core_load_objects(PyObject *module, PyObject *args);
PyObject *core_merge_chunks(PyObject *module, PyObject *args);
PyObject *core_merged_size(PyObject *module, PyObject *args);
PyObject *core_scan_files(PyObject *module, PyObject *args);
PyObject *core_sha256_pair(PyObject *module, PyObject *args);
PyObject *core_sha256_pair_update(PyObject *module, PyObject *args);
PyObject *core_sha256_pair_digests(PyObject *module, PyObject *args);
PyObject *core_read_members(PyObject *module, PyObject *args);
PyObject *core_split_members(PyObject *module, PyObject *args);

#endif
