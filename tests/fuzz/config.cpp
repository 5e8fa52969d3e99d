#include "core/error.h"
#include "models/causal_vae3d.h"
#include "models/clip.h"
#include "models/dc_ae.h"
#include "models/dc_ae_video.h"
#include "models/flux_ae.h"
#include "models/gemma2.h"
#include "models/sana.h"
#include "models/t5.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  try {
    Config c = Config::parse(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
    for (auto* read :
         {+[](const Config& x) { read_sana_config(x); }, +[](const Config& x) { read_gemma2_config(x); },
          +[](const Config& x) { read_dc_ae_config(x); }, +[](const Config& x) { read_t5_config(x); },
          +[](const Config& x) { read_clip_text_config(x); }, +[](const Config& x) { read_causal_vae3d_config(x); },
          +[](const Config& x) { read_video_dc_ae_config(x); }, +[](const Config& x) { read_flux_ae_config(x); }}) {
      try {
        read(c);
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::internal) throw;
      }
    }
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
