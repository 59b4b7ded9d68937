// Makes lucene_golden.json: what the retrieval of the official WebShop answers, for tests/test_webshop_lucene.py.
//
// The official shop indexes and searches with pyserini 0.17.0, that is Anserini 0.14.3 on Lucene 8. Needed are Java 11 or
// later and anserini-0.14.3-fatjar.jar, which lies in the wheel of pyserini 0.17.0 (unzip it, pyserini/resources/jars/).
//
//   python tests/data/webshop/make_lucene_input.py work
//   javac -cp anserini-0.14.3-fatjar.jar -d work tests/data/webshop/MakeGolden.java
//   java -cp anserini-0.14.3-fatjar.jar:work MakeGolden work tests/data/webshop/lucene_golden.json
//
// `work/documents/documents.jsonl` ({"id", "contents"} a line) is indexed with the official options; the texts of
// `work/texts.json` are analysed; the queries of `work/queries.json` are searched. The hits are those of Anserini's
// SimpleSearcher (which pyserini calls); the scores are Lucene's own, before Anserini spreads ties by 1e-6.
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.anserini.analysis.AnalyzerUtils;
import io.anserini.analysis.DefaultEnglishAnalyzer;
import io.anserini.index.IndexCollection;
import io.anserini.search.SimpleSearcher;
import io.anserini.search.query.BagOfWordsQueryGenerator;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.HashMap;
import java.util.Map;
import org.apache.lucene.analysis.Analyzer;
import org.apache.lucene.index.DirectoryReader;
import org.apache.lucene.search.IndexSearcher;
import org.apache.lucene.search.Query;
import org.apache.lucene.search.ScoreDoc;
import org.apache.lucene.search.similarities.BM25Similarity;
import org.apache.lucene.store.FSDirectory;

public class MakeGolden {
  static final ObjectMapper JSON = new ObjectMapper();
  static final Analyzer ANALYZER = DefaultEnglishAnalyzer.newDefaultInstance();

  public static void main(String[] args) throws Exception {
    Path work = Paths.get(args[0]);
    Path index = Files.createTempDirectory("index");
    IndexCollection.main(new String[] {"-collection", "JsonCollection", "-generator", "DefaultLuceneDocumentGenerator",
        "-threads", "1", "-input", work.resolve("documents").toString(), "-index", index.toString(), "-storePositions",
        "-storeDocvectors", "-storeRaw"});
    ObjectNode golden = JSON.createObjectNode();
    golden.put("made_with", "anserini 0.14.3 (pyserini 0.17.0), lucene "
        + org.apache.lucene.util.Version.LATEST + ", see MakeGolden.java");
    ArrayNode documents = golden.putArray("documents");
    for (String line : Files.readAllLines(work.resolve("documents/documents.jsonl"))) {
      documents.add(JSON.readTree(line));
    }
    ArrayNode analysed = golden.putArray("analysed");
    for (var text : JSON.readTree(work.resolve("texts.json").toFile())) {
      ObjectNode entry = analysed.addObject().put("text", text.asText());
      AnalyzerUtils.analyze(ANALYZER, text.asText()).forEach(entry.putArray("terms")::add);
    }
    ArrayNode searched = golden.putArray("searched");
    try (SimpleSearcher simple = new SimpleSearcher(index.toString());
        DirectoryReader reader = DirectoryReader.open(FSDirectory.open(index))) {
      for (var query : JSON.readTree(work.resolve("queries.json").toFile())) {
        search(query.asText(), simple, reader, searched.addObject());
      }
    }
    Files.writeString(Paths.get(args[1]), JSON.writeValueAsString(golden).replace("},{", "},\n{") + "\n");
    System.exit(0);
  }

  static void search(String text, SimpleSearcher simple, DirectoryReader reader, ObjectNode entry) throws Exception {
    IndexSearcher searcher = new IndexSearcher(reader);
    searcher.setSimilarity(new BM25Similarity(0.9f, 0.4f));
    Query query = new BagOfWordsQueryGenerator().buildQuery("contents", ANALYZER, text);
    Map<String, Float> scores = new HashMap<>();
    for (ScoreDoc hit : searcher.search(query, Math.max(1, reader.numDocs())).scoreDocs) {
      scores.put(reader.document(hit.doc).get("id"), hit.score);
    }
    entry.put("query", text);
    ArrayNode hits = entry.putArray("hits");
    for (SimpleSearcher.Result hit : simple.search(text, 50)) {
      if (Math.abs(hit.score - scores.get(hit.docid)) > 2e-4) throw new IllegalStateException("another similarity");
      hits.addArray().add(hit.docid).add((double) scores.get(hit.docid));
    }
  }
}
