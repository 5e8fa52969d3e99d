// One file from the hub into the cache.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "io/hub_cache.h"
#include "io/hub_http.h"
#include "io/hub_settings.h"

namespace kinora::hub {

std::string resolve_url(const Settings& settings, const std::string& repository, const std::string& commit,
                        const std::string& path);

struct FetchHooks {
  std::function<void(uint64_t bytes)> moved;  // bytes of the file that are here
  std::function<void()> waiting;              // another process is fetching it
};

// Returns when the snapshot has the file, its size and hash verified. Goes on where an earlier download stopped;
// `force` fetches again what is there. Throws as Hub::pull does.
void fetch_file(Http& http, const Settings& settings, RepositoryCache& cache, const std::string& commit,
                const TreeEntry& entry, bool force, const std::atomic<bool>* stop, const FetchHooks& hooks);

}  // namespace kinora::hub
