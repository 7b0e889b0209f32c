"""Stands in for the build backend of llama-cpp-python while pip downloads its source: names the package, builds nothing."""
import os


def prepare_metadata_for_build_wheel(directory, config_settings=None):
    name, version = "llama_cpp_python", "0.3.36"
    folder = f"{name}-{version}.dist-info"
    os.makedirs(os.path.join(directory, folder))
    with open(os.path.join(directory, folder, "METADATA"), "w", encoding="utf-8") as file:
        file.write(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder
