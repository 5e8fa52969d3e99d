// Downloads from a hub on this machine, honest and otherwise.
#include <sys/stat.h>

#include <thread>

#include "hub/site.h"
#include "io/digest.h"

namespace kinora::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Pull = Site;

constexpr const char* kWeights = "transformer/diffusion_pytorch_model.safetensors";
const Json kCdn = {{"path", "diffusion_pytorch_model.safetensors"}, {"host", "cdn"}};

Json with(Json base, const Json& more) {
  base.update(more);
  return base;
}

TEST_F(Pull, LeavesACacheAsHuggingFaceDoes) {
  put_model();
  std::string folder = pull();
  expect_whole(folder);
  expect_sound_cache();
  std::string commit = fs::path(folder).filename(), hash = digest_of_file(folder + "/" + kWeights);
  EXPECT_EQ(folder, repository() + "/snapshots/" + commit);
  EXPECT_EQ(read_file(repository() + "/refs/main", 100), commit);
  EXPECT_EQ(fs::read_symlink(folder + "/" + kWeights), "../../../blobs/" + hash);
  EXPECT_EQ(fs::read_symlink(folder + "/model_index.json"),
            "../../blobs/" + digest_of_file(folder + "/model_index.json", true));
  EXPECT_TRUE(fs::exists(settings_.cache + "/.locks/models--org--model/" + hash + ".lock"));
  EXPECT_TRUE(
      read_file(settings_.cache + "/CACHEDIR.TAG", 1000).starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"));
  EXPECT_FALSE(fs::exists(folder + "/README.md"));
  EXPECT_FALSE(fs::exists(folder + "/transformer/diffusion_pytorch_model.bin"));
  Json tree = Json::parse(read_file(repository() + "/trees/" + commit + ".json", 1 << 20));
  EXPECT_EQ(tree["files"][kWeights]["lfs_sha256"], hash);
  EXPECT_EQ(tree["files"].size(), 10u);
  // Again: the hub is asked what main is, and for no file.
  forget_requests();
  EXPECT_EQ(pull(), folder);
  EXPECT_EQ(requests().size(), 1u);
}

TEST_F(Pull, FollowsPagesOfALongList) {
  put_model();
  configure({{"page", 3}});
  expect_whole(pull());
}

TEST_F(Pull, FollowsAModelThatWasRenamed) {
  put_model();
  settings_.token = "hf_secret";
  configure({{"moved", {{"old/name", "org/model"}}}, {"tokens", {{"org/model", "hf_secret"}}}});
  std::string folder = pull("old/name");
  expect_whole(folder);
  EXPECT_NE(folder.find("models--old--name"), std::string::npos);
}

TEST_F(Pull, RevisionsShareBlobs) {
  put_model();
  put_model("org/model", 100'000, "refs%2Fpr%2F1");
  put("org/model/refs%2Fpr%2F1/scheduler/scheduler_config.json", "{\"b\": 3}");
  std::string main = pull(), other = pull("org/model@refs/pr/1");
  EXPECT_NE(main, other);
  EXPECT_EQ(fs::canonical(main + "/" + kWeights), fs::canonical(other + "/" + kWeights));
  EXPECT_EQ(read_file(repository() + "/refs/refs/pr/1", 100), fs::path(other).filename());
  EXPECT_EQ(pull("org/model@" + fs::path(other).filename().string()), other);
  expect_sound_cache();
}

TEST_F(Pull, TheTokenStaysWithTheHub) {
  put_model();
  settings_.token = "hf_secret";
  configure({{"tokens", {{"org/model", "hf_secret"}}}});
  expect_whole(pull());
  size_t elsewhere = 0;
  for (const Json& request : requests()) {
    if (request["host"] == "hub") {
      EXPECT_EQ(request["authorization"], "Bearer hf_secret") << request;
    } else {
      EXPECT_TRUE(request["authorization"].is_null()) << request;
      ++elsewhere;
    }
  }
  EXPECT_EQ(elsewhere, 3u);
}

// Away and back again: what another host sends along must not be served with the token.
TEST_F(Pull, TheTokenDoesNotComeBackByWayOfAnotherHost) {
  put_model();
  settings_.token = "hf_secret";
  fault(with(kCdn, {{"redirect", "{hub}/org/model/resolve/main/README.md"}}));
  expect_pull_fails(ErrorKind::io, "another size");
  for (const Json& request : requests()) {
    bool back = request["path"].get<std::string>().ends_with("README.md");
    EXPECT_TRUE(!back || request["authorization"].is_null());
  }
}

TEST_F(Pull, GoesOnWhereTheConnectionWasCut) {
  put_model();
  fault(with(kCdn, {{"cut", 40'000}, {"times", 1}}));
  expect_whole(pull());
  std::vector<std::string> ranges;
  for (const Json& request : requests()) {
    if (request["host"] == "cdn" && !request["range"].is_null()) ranges.push_back(request["range"]);
  }
  EXPECT_EQ(ranges, std::vector<std::string>{"bytes=40000-"});
}

TEST_F(Pull, GoesOnWhereAnEarlierPullWasCut) {
  put_model();
  settings_.retries = 0;
  fault(with(kCdn, {{"cut", 40'000}, {"times", 1}}));
  expect_pull_fails(ErrorKind::io, "40000 of 100000 bytes are here");
  expect_sound_cache();
  EXPECT_FALSE(hub::Hub(settings_).find({"org/model", "main"}, {}));
  hub::Plan next = plan();
  uint64_t partial = 0;
  for (const hub::PlannedFile& file : next.files) partial = file.entry.path == kWeights ? file.partial : partial;
  EXPECT_EQ(partial, 40'000u);
  forget_requests();
  expect_whole(pull());
  bool resumed = false;
  for (const Json& request : requests()) resumed = resumed || request["range"] == "bytes=40000-";
  EXPECT_TRUE(resumed);
  for (const auto& entry : fs::directory_iterator(repository() + "/blobs"))
    EXPECT_NE(entry.path().extension(), ".incomplete");
}

// A login page of a hotel's network, say, answered in place of the file.
TEST_F(Pull, WhatHasArrivedOutlivesAWrongAnswer) {
  put_model();
  settings_.retries = 0;
  fault(with(kCdn, {{"cut", 40'000}, {"times", 1}}));
  expect_pull_fails(ErrorKind::io, "40000 of 100000 bytes are here");
  for (bool ignore : {true, false}) {  // with status 200, or 416 for the part asked for
    fault(with(kCdn, {{"status", 200}, {"body", "<html>"}, {"ignore_range", ignore}}));
    expect_pull_fails(ErrorKind::io, "another size");
  }
  forget_requests();
  configure(Json::object());
  expect_whole(pull());
  bool resumed = false;
  for (const Json& request : requests()) resumed = resumed || request["range"] == "bytes=40000-";
  EXPECT_TRUE(resumed);
}

TEST_F(Pull, ManyCutsAreNoFailureAsLongAsBytesArrive) {
  put_model();
  settings_.retries = 1;
  fault(with(kCdn, {{"cut", 16'384}}));
  expect_whole(pull());
}

TEST_F(Pull, GoesOnAfterAStall) {
  put_model();
  fault(with(kCdn, {{"stall", 16'384}, {"times", 1}}));
  expect_whole(pull());
}

TEST_F(Pull, StartsOverWhenTheServerCannotResume) {
  put_model();
  configure(
      {{"faults", Json::array({with(kCdn, {{"cut", 40'000}, {"times", 1}}), with(kCdn, {{"ignore_range", true}})})}});
  expect_whole(pull());
}

TEST_F(Pull, StartsOverWhenTheServerRefusesTheRange) {
  put_model();
  configure({{"faults", Json::array({with(kCdn, {{"cut", 40'000}, {"times", 1}}),
                                     with(kCdn, {{"status", 416}, {"times", 1}})})}});
  expect_whole(pull());
}

TEST_F(Pull, StartsOverWhenWhatWasThereIsDamaged) {
  put_model();
  std::string hash = digest_of_file(temp_.path("repos/org/model/main/" + std::string(kWeights)));
  for (size_t size : {size_t{50'000}, size_t{100'000}, size_t{150'000}}) {  // a part, all of it, more than all
    fs::remove_all(settings_.cache);
    fs::create_directories(repository() + "/blobs");
    std::ofstream(repository() + "/blobs/" + hash + ".incomplete") << std::string(size, 'x');
    expect_whole(pull());
    expect_sound_cache();
  }
}

TEST_F(Pull, FetchesABlobOfTheWrongSizeAgain) {
  put_model();
  std::string folder = pull();
  fs::path blob = fs::canonical(folder + "/" + kWeights);
  fs::resize_file(blob, 10);
  expect_whole(pull());
  fs::remove(blob);  // and one whose link leads nowhere
  expect_whole(pull());
  expect_sound_cache();
}

TEST_F(Pull, ForceFetchesAgainWhatIsDamagedInside) {
  put_model();
  std::string folder = pull();
  std::ofstream(fs::canonical(folder + "/" + kWeights)) << std::string(100'000, 'x');
  hub::PullOptions force;
  force.force = true;
  pull("org/model", {}, force);
  expect_whole(folder);
}

TEST_F(Pull, ServersThatLieAreFoundOut) {
  put_model();
  Json head = {{"path", "resolve/.*diffusion_pytorch_model.safetensors"}, {"method", "HEAD"}};
  struct Lie {
    Json fault;
    ErrorKind kind;
    const char* word;
  } lies[] = {
      {with(kCdn, {{"flip", true}}), ErrorKind::model, "its hash differs"},
      {with(kCdn, {{"extra", 5}}), ErrorKind::io, "another size"},
      {with(kCdn, {{"extra", 5}, {"chunked", true}}), ErrorKind::io, "more than the 100000 bytes"},
      {with(kCdn, {{"set", {{"Content-Encoding", "gzip"}}}}), ErrorKind::io, "compresses"},
      {with(kCdn, {{"status", 200}, {"body", "short"}}), ErrorKind::io, "another size"},
      {with(kCdn, {{"status", 206}, {"body", "short"}, {"headers", {{"Content-Range", "bytes 0-4/5"}}}}), ErrorKind::io,
       "another size"},
      {with(head, {{"set", {{"X-Linked-Size", "99"}}}}), ErrorKind::io, "announces 99"},
      {with(head, {{"set", {{"X-Linked-Etag", std::string(64, 'a')}}}}), ErrorKind::io, "another hash"},
      {with(head, {{"set", {{"X-Linked-Etag", "\"../../../escaped\""}, {"ETag", nullptr}}}}), ErrorKind::io,
       "no usable ETag"},
      {with(head, {{"set", {{"X-Repo-Commit", nullptr}}}}), ErrorKind::io, "not for commit"},
      {with(head, {{"set", {{"X-Repo-Commit", std::string(40, 'a')}}}}), ErrorKind::io, "not for commit"},
      {{{"path", "scheduler_config.json"}, {"method", "GET"}, {"flip", true}}, ErrorKind::model, "its hash differs"},
  };
  for (const Lie& lie : lies) {
    fs::remove_all(settings_.cache);
    fault(lie.fault);
    expect_pull_fails(lie.kind, lie.word);
    expect_sound_cache();
    EXPECT_FALSE(hub::Hub(settings_).find({"org/model", "main"}, {})) << lie.word;
    configure(Json::object());
    expect_whole(pull());
  }
}

TEST_F(Pull, ErrorsSayWhatToDo) {
  put_model();
  put_model("org/gated");
  configure({{"tokens", {{"org/gated", "hf_good"}}}});
  expect_pull_fails(ErrorKind::input, "not on the hub", "org/absent");
  expect_pull_fails(ErrorKind::input, "no such revision", "org/model@v9");
  expect_pull_fails(ErrorKind::input, "accept its terms", "org/gated");
  settings_.token = "hf_other";
  expect_pull_fails(ErrorKind::input, "accept its terms", "org/gated");
  expect_pull_fails(ErrorKind::input, "not on the hub", "org/absent");
  settings_.token.clear();
  put("org/bare/main/weights.safetensors", "x");
  expect_pull_fails(ErrorKind::input, "kinora pull org/bare 'weights.safetensors'", "org/bare");
  struct Refusal {
    Json fault;
    ErrorKind kind;
    const char* word;
  } refusals[] = {
      {{{"path", "/api/"},
        {"status", 401},
        {"headers", {{"X-Error-Message", "Invalid credentials in Authorization header"}}}},
       ErrorKind::input,
       "does not accept the token"},
      {{{"path", "/api/"}, {"status", 403}, {"headers", {{"X-Error-Message", "Forbidden: no read access"}}}},
       ErrorKind::input,
       "no read access"},
      {{{"path", "/api/"}, {"status", 429}, {"headers", {{"Retry-After", "0"}}}}, ErrorKind::io, "limits requests"},
      {{{"path", "/api/"}, {"status", 429}, {"headers", {{"RateLimit", "\"api\";r=0;t=4000"}}}},
       ErrorKind::io,
       "asks to wait 4000 s"},
      {{{"path", "/api/"}, {"status", 503}}, ErrorKind::io, "HTTP 503"},
      {{{"path", "/api/"}, {"status", 418}}, ErrorKind::io, "HTTP 418"},
      {{{"path", "/api/"}, {"status", 200}, {"body", "<html>"}}, ErrorKind::io, "HF_ENDPOINT"},
      {{{"path", "/api/"}, {"status", 200}, {"body", "{\"sha\": \"../..\"}"}}, ErrorKind::io, "names no commit"},
      {{{"path", "/api/"}, {"status", 200}, {"body", std::string(100'000, '[')}}, ErrorKind::io, "nested"},
      {{{"path", "/api/"}, {"status", 302}}, ErrorKind::io, "redirect"},
      {{{"path", "."}, {"redirect", "{hub}/again"}}, ErrorKind::io, "more than 10 times"},
      {{{"path", "/api/"}, {"redirect", "file:///etc/passwd"}}, ErrorKind::io, "not followed"},
      {{{"path", "/resolve/"}, {"method", "HEAD"}, {"status", 404}, {"headers", {{"X-Error-Code", "EntryNotFound"}}}},
       ErrorKind::input,
       "no such file"},
      {{{"path", "."}, {"host", "cdn"}, {"status", 403}}, ErrorKind::input, "may not be read"},
  };
  settings_.retries = 2;
  for (const Refusal& refusal : refusals) {
    fs::remove_all(settings_.cache);
    fault(refusal.fault);
    expect_pull_fails(refusal.kind, refusal.word);
  }
  settings_.endpoint = "http://127.0.0.1:1";
  expect_pull_fails(ErrorKind::io, "cannot reach 127.0.0.1");
  settings_.endpoint = "http://" + std::string(70, 'a');  // longer than a name may be, so no server is asked for it
  expect_pull_fails(ErrorKind::io, "cannot reach aaaa");
}

TEST_F(Pull, RetriesWhatPasses) {
  put_model();
  for (const char* path : {"/revision/", "/tree/", "resolve/.*config.json", "safetensors"}) {
    fs::remove_all(settings_.cache);
    fault({{"path", path}, {"status", 503}, {"times", 2}});
    expect_whole(pull());
    fs::remove_all(settings_.cache);
    fault({{"path", path}, {"status", 429}, {"headers", {{"Retry-After", "0"}}}, {"times", 2}});
    expect_whole(pull());
  }
}

TEST_F(Pull, AServerThatNeverAnswersIsGivenUp) {
  put_model();
  settings_.retries = 1;
  fault({{"path", "/api/"}, {"stall", 0}});
  expect_pull_fails(ErrorKind::io, "cannot reach 127.0.0.1");
}

TEST_F(Pull, HostileListsAreRefusedBeforeAnythingIsWritten) {
  put_model();
  auto entry = [](const Json& path, const Json& size = 5) {
    return Json{{"type", "file"}, {"path", path}, {"size", size}, {"oid", std::string(40, 'a')}};
  };
  Json many = Json::array();
  for (const char* path : {"../evil", "/etc/evil", "a/../../evil", "a//b", "a/./b", "", ".", "a\\..\\b", "C:/evil",
                           "a/b\n", "a\u009b31mb"})
    many.push_back(Json::array({entry(path)}));
  many.push_back(Json::array({entry(std::string(300, 'a'))}));
  many.push_back(Json::array({entry(7)}));
  many.push_back(Json::array({entry("a", -1)}));
  many.push_back(Json::array({entry("a", 1e30)}));
  many.push_back(Json::array({entry("a"), entry("a")}));
  many.push_back(Json::array({with(entry("a"), {{"lfs", {{"oid", "../../x"}}}})}));
  many.push_back(Json::object());
  for (const Json& list : many) {
    fault({{"path", "/tree/"}, {"status", 200}, {"body", list.dump()}});
    EXPECT_THROW(pull(), Error) << list;
    EXPECT_FALSE(fs::exists(settings_.cache)) << list;
  }
  EXPECT_FALSE(fs::exists(temp_.path("evil")));
  fault({{"path", "/tree/"},
         {"status", 200},
         {"body", "[]"},
         {"headers", {{"Link", "<" + cdn_ + "/more>; rel=\"next\""}}}});
  expect_pull_fails(ErrorKind::io, "at another host");
  fault({{"path", "/tree/"},
         {"set", {{"Link", "<" + settings_.endpoint + "/api/models/org/model/tree/main>; rel=\"next\""}}}});
  expect_pull_fails(ErrorKind::io, "twice");
}

TEST_F(Pull, AFileThatIsAlsoAFolderIsRefused) {
  put_model();
  Json list =
      Json::parse(R"([{"type": "file", "path": "a", "size": 0, "oid": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"},
                              {"type": "file", "path": "a/b", "size": 0, "oid": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"}])");
  fault({{"path", "/tree/"}, {"status", 200}, {"body", list.dump()}});
  EXPECT_THROW(pull("org/model", {"", {"*"}, {}}), Error);
  expect_sound_cache();
}

TEST_F(Pull, ADiskWithoutRoomIsSaidBefore) {
  put_model();
  Json list = Json::parse(
      R"([{"type": "file", "path": "a.safetensors", "size": 100000000000000000, "oid": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"}])");
  fault({{"path", "/tree/"}, {"status", 200}, {"body", list.dump()}});
  expect_failure([&] { pull("org/model", {"", {"a.safetensors"}, {}}); }, ErrorKind::io, "100000000000 MB");
  EXPECT_FALSE(fs::exists(settings_.cache));
}

TEST_F(Pull, TakesFilesByNameAndNotesAbsentOnes) {
  put_model();
  std::string folder = pull("org/model", {"", {"README.md", "scheduler/", "nowhere.json"}, {}});
  EXPECT_EQ(read_file(folder + "/README.md", 100), "# A model");
  EXPECT_TRUE(fs::exists(folder + "/scheduler/scheduler_config.json"));
  EXPECT_FALSE(fs::exists(folder + "/transformer"));
  hub::RepositoryCache cache(settings_.cache, "org/model");
  EXPECT_TRUE(cache.known_absent(fs::path(folder).filename(), "nowhere.json"));
  EXPECT_FALSE(cache.known_absent(fs::path(folder).filename(), "README.md"));
}

TEST_F(Pull, WithoutTheHubWhatIsHereIsFound) {
  put_model();
  std::string folder = pull();
  settings_.endpoint = "http://127.0.0.1:1";
  settings_.offline = true;
  hub::Hub hub(settings_);
  EXPECT_EQ(hub.find({"org/model", "main"}, {}), folder);
  EXPECT_EQ(hub.find({"org/model", fs::path(folder).filename()}, {}), folder);
  EXPECT_FALSE(hub.find({"org/model", "v2"}, {}));
  EXPECT_FALSE(hub.find({"org/model", "main"}, {"fp16", {}, {}}));
  EXPECT_FALSE(hub.find({"org/other", "main"}, {}));
  expect_pull_fails(ErrorKind::io, "HF_HUB_OFFLINE");
  // Before huggingface_hub kept lists of files, the files themselves had to tell.
  fs::remove_all(repository() + "/trees");
  EXPECT_EQ(hub.find({"org/model", "main"}, {}), folder);
  fs::remove(folder + "/text_encoder/model-00002-of-00002.safetensors");
  EXPECT_FALSE(hub.find({"org/model", "main"}, {}));
}

TEST_F(Pull, WithoutLinksFilesStandInTheSnapshot) {
  put_model();
  settings_.symlinks = false;
  std::string folder = pull();
  expect_whole(folder);
  EXPECT_FALSE(fs::is_symlink(folder + "/" + kWeights));
  forget_requests();
  EXPECT_EQ(pull(), folder);
  EXPECT_EQ(requests().size(), 1u);
  EXPECT_EQ(hub::Hub(settings_).find({"org/model", "main"}, {}), folder);
}

TEST_F(Pull, TwoAtOnceFetchEachFileOnce) {
  put_model();
  fault({{"path", "."}, {"host", "cdn"}, {"slow", 0.02}});
  std::atomic<int> waited{0};
  hub::PullOptions options;
  options.on_event = [&](const hub::Event& event) { waited += event.kind == hub::Event::waiting; };
  std::string other;
  std::thread second([&] { other = pull("org/model", {}, options); });
  std::string folder = pull("org/model", {}, options);
  second.join();
  EXPECT_EQ(folder, other);
  expect_whole(folder);
  auto all = requests();
  EXPECT_EQ(std::count_if(all.begin(), all.end(), [](const Json& r) { return r["host"] == "cdn"; }), 3);
  EXPECT_GT(waited, 0);
}

TEST_F(Pull, StopsWhenAskedAndGoesOnLater) {
  put_model();
  fault({{"path", "."}, {"host", "cdn"}, {"slow", 0.05}});
  std::atomic<bool> stop{false};
  hub::PullOptions options;
  options.stop = &stop;
  options.on_event = [&](const hub::Event& event) {
    stop = stop || (event.kind == hub::Event::moved && event.bytes > 20'000);
  };
  expect_failure([&] { pull("org/model", {}, options); }, ErrorKind::cancelled, "goes on from here");
  expect_sound_cache();
  configure(Json::object());
  expect_whole(pull());
}

TEST_F(Pull, ALinkPlantedInTheSnapshotIsNotFollowed) {
  put_model();
  std::string folder = pull();
  fs::remove_all(folder + "/transformer");
  fs::create_directory(temp_.path("elsewhere"));
  fs::create_directory_symlink(temp_.path("elsewhere"), folder + "/transformer");
  expect_pull_fails(ErrorKind::io, "is no folder");
  EXPECT_TRUE(fs::is_empty(temp_.path("elsewhere")));
}

TEST_F(Pull, UsesTheSharedStoreAndSweepsIt) {
  put_model();
  configure({{"xet", true}});
  std::string source = temp_.path("repos/org/model/main/" + std::string(kWeights)), hash = digest_of_file(source);
  Digest xet = Digest::sha256();
  xet.update("xet", 3);
  xet.update(hash.data(), hash.size());
  std::string key = xet.hex(), store = settings_.cache + "/blobs/" + key.substr(0, 2);
  fs::create_directories(store);
  fs::copy_file(source, store + "/" + key);
  std::string folder = pull();  // without its mark the folder is not Hugging Face's
  EXPECT_FALSE(fs::is_symlink(repository() + "/blobs/" + hash));
  fs::remove_all(repository());
  std::ofstream(settings_.cache + "/blobs/.huggingface-shared-blobs") << "1\n";
  forget_requests();
  folder = pull();
  expect_whole(folder);
  EXPECT_EQ(fs::read_symlink(repository() + "/blobs/" + hash), "../../blobs/" + key.substr(0, 2) + "/" + key);
  EXPECT_EQ(read_file(store + "/" + key + ".refs", 1000), "models--org--model/blobs/" + hash + "\n");
  auto all = requests();
  EXPECT_EQ(std::count_if(all.begin(), all.end(), [](const Json& r) { return r["host"] == "cdn"; }), 2);
  expect_sound_cache();
  hub::remove_revision(settings_.cache, hub::scan_cache(settings_.cache)[0], "");
  EXPECT_FALSE(fs::exists(repository()));
  EXPECT_FALSE(fs::exists(store + "/" + key));
}

}  // namespace
}  // namespace kinora::test
