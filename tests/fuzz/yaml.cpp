#include "core/error.h"
#include "io/settings_file.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  std::string text(reinterpret_cast<const char*>(data), size);
  SettingsRequest request;
  try {
    std::vector<std::string> problems;
    SettingsFile file = read_settings_file(parse_yaml(text, "fuzz"), "fuzz", &problems);
    for (const SettingEntry& entry : file.entries) request.sets.push_back(entry.key + "=" + entry.text);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
    request.sets = {text};
  }
  if (text.find(char{0}) != std::string::npos) return 0;  // no argument of a program holds one
  std::string shown;
  try {
    shown = settings_yaml(resolve_settings(request));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  if (!shown.empty()) read_settings_file(parse_yaml(shown, "shown"), "shown");  // what is shown can be read
  return 0;
}
